// TQ1_0, decoded between the products of tiles.
#include "../avx512_vnni/TQ1_0.cpp"
