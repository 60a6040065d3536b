// Q6_K, decoded between the products of tiles.
#include "../avx512_vnni/Q6_K.cpp"
