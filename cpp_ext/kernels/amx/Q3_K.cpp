// Q3_K, decoded between the products of tiles.
#include "../avx512_vnni/Q3_K.cpp"
