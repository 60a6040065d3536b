// TQ2_0, decoded between the products of tiles.
#include "../avx512_vnni/TQ2_0.cpp"
