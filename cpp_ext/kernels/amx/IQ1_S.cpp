// IQ1_S, decoded between the products of tiles.
#include "../avx512_vnni/IQ1_S.cpp"
