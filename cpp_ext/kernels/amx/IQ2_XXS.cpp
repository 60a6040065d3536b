// IQ2_XXS, decoded between the products of tiles.
#include "../avx512_vnni/IQ2_XXS.cpp"
