// IQ1_M, decoded between the products of tiles.
#include "../avx512_vnni/IQ1_M.cpp"
