"""What all configs share: frozen, strict, and JSON data without the names that people give."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,39}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
# Names that people give, and where the configs inside a config have them: they are part of no recipe.
_NAMES: dict[str, Any] = {"name": True, "label": True, "images": {"label"}, "zoo": {"images": {"label"}}}


def is_unset(value: object) -> bool:
    """Tell whether a setting is left at None; one that came later is then left out, and renames no work."""
    return value is None


class Config(BaseModel):
    """Base of all configs: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def recipe(self) -> dict[str, Any]:
        """Return the settings that shape the result, as JSON data: all but the names that people give."""
        return self.model_dump(mode="json", exclude=_NAMES)


class ShownAsAnyOf:
    """Annotation of a union: describes it in the way that Prefect's form can show; what is accepted stays the same."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Rename `oneOf`, and leave out which key tells the alternatives apart."""
        described = handler(schema)
        described["anyOf"] = described.pop("oneOf")
        described.pop("discriminator", None)
        return described
