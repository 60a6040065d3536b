// Q5_0, decoded between the products of tiles.
#include "../avx512_vnni/Q5_0.cpp"
