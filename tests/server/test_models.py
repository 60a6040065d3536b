"""/v1/models for both official clients."""

import openai
import pytest
from server.scripted_engine import ScriptedEngine


def test_the_model_is_listed_with_its_context(serve):
    client = serve(ScriptedEngine(context=123)).client()
    [card] = client.models.list().data
    assert (card.id, card.object, card.max_model_len) == ("k2", "model", 123)
    assert client.models.retrieve("k2").id == "k2"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_anthropics_client_gets_its_own_shape(serve):
    client = serve(ScriptedEngine()).anthropic()
    [card] = client.models.list().data
    assert (card.id, card.type, card.display_name) == ("k2", "model", "k2")
    assert client.models.retrieve("k2").created_at == card.created_at
    assert card.created_at.year >= 2025


def test_while_the_model_loads_its_name_is_known_already(serve):
    [card] = serve(None).client().models.list().data
    assert card.id == "k2" and not hasattr(card, "max_model_len")
