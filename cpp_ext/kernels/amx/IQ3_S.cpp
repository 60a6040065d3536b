// IQ3_S, decoded between the products of tiles.
#include "../avx512_vnni/IQ3_S.cpp"
