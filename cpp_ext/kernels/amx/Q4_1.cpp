// Q4_1, decoded between the products of tiles.
#include "../avx512_vnni/Q4_1.cpp"
