"""What all configs share: frozen, strict, and JSON data without the names that people give and without secrets."""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mzsane.addresses import check_address, store_address

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,39}$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
# As JSON, which manifests, fingerprints and Prefect's database hold, it is without its query: see `mzsane.addresses`.
Address = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(check_address),
    PlainSerializer(store_address, return_type=str, when_used="json"),
]
_LARGEST = 2**63 - 1
# Names that people give, and where the configs inside a config have them: they are part of no recipe.
_NAMES: dict[str, Any] = {"name": True, "label": True, "images": {"label"}, "zoo": {"images": {"label"}}}


def is_unset(value: object) -> bool:
    """Tell whether a setting is left at None; one that came later is then left out, and renames no work."""
    return value is None


class Config(BaseModel):
    """Base of all configs: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="after")
    def _refuse_huge_numbers(self) -> "Config":
        for name in type(self).model_fields:
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int) and abs(number) > _LARGEST:
                    raise ValueError(f"{name} is beyond {_LARGEST:,}, the largest whole number that files hold")
        return self

    def recipe(self) -> dict[str, Any]:
        """Return the settings that shape the result, as JSON data: all but the names that people give."""
        return self.model_dump(mode="json", exclude=_NAMES)


def refuse_unused(config: Config, names: tuple[str, ...], why: str) -> None:
    """Refuse settings that another setting leaves without meaning, unless they have their default.

    Raises:
        ValueError: one has not.
    """
    for name in names:
        if getattr(config, name) != type(config).model_fields[name].default:
            raise ValueError(f"{name} has no meaning {why}")


class ShownAsAnyOf:
    """Annotation of a union: describes it in the way that Prefect's form can show; what is accepted stays the same."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Rename `oneOf`, and leave out which key tells the alternatives apart."""
        described = handler(schema)
        described["anyOf"] = described.pop("oneOf")
        described.pop("discriminator", None)
        return described
