// IQ2_S, decoded between the products of tiles.
#include "../avx512_vnni/IQ2_S.cpp"
