// Q4_0, decoded between the products of tiles.
#include "../avx512_vnni/Q4_0.cpp"
