// IQ3_XXS, decoded between the products of tiles.
#include "../avx512_vnni/IQ3_XXS.cpp"
