// Q2_K, decoded between the products of tiles.
#include "../avx512_vnni/Q2_K.cpp"
