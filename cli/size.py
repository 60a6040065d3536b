"""Sizes as options take them: `24GiB`. Knows nothing of what is that large."""

import click

from hybrid_k2.rules import parse_size


class Size(click.ParamType):
    """`24GiB` as bytes."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        try:
            return value if isinstance(value, int) else parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
