// Q4_K, decoded between the products of tiles.
#include "../avx512_vnni/Q4_K.cpp"
