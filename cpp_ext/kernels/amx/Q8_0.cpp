// Q8_0, decoded between the products of tiles.
#include "../avx512_vnni/Q8_0.cpp"
