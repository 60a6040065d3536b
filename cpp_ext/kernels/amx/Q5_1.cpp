// Q5_1, decoded between the products of tiles.
#include "../avx512_vnni/Q5_1.cpp"
