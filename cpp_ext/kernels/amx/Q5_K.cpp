// Q5_K, decoded between the products of tiles.
#include "../avx512_vnni/Q5_K.cpp"
