"""The one configuration: a frozen, validated model whose fields are the notebooks' parameters.

A notebook's `parameters` cell holds flat scalars; papermill overwrites them (`-f configs/voc12.yaml -p seed 1`). The set-up
cell turns them into a `Config`, which refuses unknown names and repairs what papermill and YAML lose ("1e-4", tuples).
Each field is declared, with its default and its meaning, in the module that reads it.
"""

import ast
import difflib
import reprlib
import sys
from types import ModuleType
from typing import Any

from pydantic import ValidationError, create_model

from wsss_lib.experiments import bottleneck
from wsss_lib.methods import METHODS
from wsss_lib.parameters import RUNTIME, Common, Count, ParameterGroup, Settings, Text
from wsss_lib.refine import affinitynet, irn, seed_masks
from wsss_lib.segment import deeplab

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 80


class OwnImages(ParameterGroup):
    """99: a reader's own photographs."""

    own_photographs: Text = ""  # folder of photographs, or of one folder for each class; empty: those of installed packages
    own_labels: Text = ""  # table of their classes; empty: they lie in class folders
    own_longest: Count = 320  # larger photographs are resized until their longer side has so many pixels; 0: none is


GROUPS = (
    Common,
    bottleneck.Parameters,
    *(method.Parameters for method in METHODS.values()),
    seed_masks.Parameters,
    irn.Parameters,
    affinitynet.Parameters,
    deeplab.Parameters,
    OwnImages,
)


class Config(create_model("Fields", __base__=GROUPS)):  # type: ignore[misc]  # the bases are found when it is imported
    """Every parameter of every stage; the defaults are the published methods' values at smoke sizes.

    Prefixes say which stage reads a field (`cam_`, `rib_`, …, `seed_`, `irn_`, `walk_`, `deeplab_`); fields without one are
    common. Explained in notebook 00, section "Parameters".
    """

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "Config":
        """Build a configuration from names and values.

        Raises:
            ValueError: one sentence that names the first unknown or invalid parameter.
        """
        unknown = [name for name in values if name not in cls.model_fields]
        if unknown:
            nearest = difflib.get_close_matches(unknown[0][:100], cls.model_fields, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else "; notebook 00 says where they are listed"
            raise ValueError(f"unknown parameter {unknown[0][:100]!r}{hint}")
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"][:1])
            message = first["msg"].removeprefix("Value error, ")
            # reprlib, because a few lines of YAML can stand for a value of many gigabytes
            sentence = f"parameter {name} = {SHORT.repr(values.get(name)):.80}: {message}" if name else message
            raise ValueError(sentence) from None

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> "Config":
        """Build the configuration from a notebook's `parameters` cell and the cell that papermill injects after it.

        Every name that a cell before the set-up cell assigns is a parameter, so that a mistyped one is refused.

        Raises:
            ValueError: as `from_values`.
        """
        names: list[str] = []
        for source in namespace.get("In", [""])[1:]:
            if "from_notebook" in source:
                return cls.from_values({name: namespace[name] for name in names})
            try:
                statements = ast.parse(source).body
            except SyntaxError:  # a cell that failed to run
                continue
            names += [name for node in statements for name in _assigned_names(node)]
        # No history is kept when nbval runs the cells, each once and in order: then all names so far count, except modules.
        return cls.from_values(
            {name: namespace[name] for name in cls.model_fields if not isinstance(namespace.get(name, sys), ModuleType)}
        )

    def names_of(self, *reads: str) -> list[str]:
        """Return the fields that a stage's `reads` names; "cam_*" stands for all that begin with "cam_".

        Raises:
            ValueError: a name or a pattern fits no field.
        """
        found: dict[str, None] = {}
        for pattern in reads:
            prefix = pattern.removesuffix("*")
            fits = [
                name for name in type(self).model_fields if name == pattern or (prefix != pattern and name.startswith(prefix))
            ]
            if not fits:
                raise ValueError(f"no parameter fits {pattern!r}")
            found |= dict.fromkeys(fits)
        return list(found)

    def parameters_of(self, *reads: str) -> dict[str, Any]:
        """Return the values that a stage's `reads` names, as JSON has them."""
        return self.model_dump(mode="json", include=set(self.names_of(*reads)))

    def settings(self, reads: tuple[str, ...], stage: str = "") -> Settings:
        """Return the view that a stage gets: what it declares, and what says how to compute."""
        return Settings({name: getattr(self, name) for name in self.names_of(*reads, *RUNTIME)}, stage)


def _assigned_names(node: ast.stmt) -> list[str]:
    """Return the names that a statement assigns: `a = 1`, `a: int = 1`, `a, b = 1, 2`, `a = b = 1`."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [
        part.id
        for target in targets
        for part in ast.walk(target)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    ]
