"""The model card of a packed bundle: its documentation, with what the Hugging Face Hub reads in front of it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Container, Mapping
from typing import Any

from pipeline.errors import BundleError
from pipeline.packing.configs import parse_config

__all__ = ["CARD", "DOCUMENTATION", "FRONT_MATTER", "model_card"]

CARD = "README.md"  # where the Hub looks for it
DOCUMENTATION, FRONT_MATTER = "docs/README.md", "docs/huggingface.yaml"
LINK = re.compile(r"(?<=\]\()(?![\w+.-]+:|[#/])(?P<path>[^)#\s]+)")  # the target of a Markdown link to a file


def model_card(documentation: str, front_matter: str, metadata: Mapping[str, Any], files: Container[str]) -> str:
    """Return a bundle's model card.

    Args:
        documentation: The text of ``docs/README.md``; its links are moved to the bundle's root.
        front_matter: The text of ``docs/huggingface.yaml``: keys as the Hub reads them, with the name of a figure of
            ``eval_metrics`` in place of each ``value``, so that a figure stands in one place.
        metadata: The bundle's.
        files: Names of all files of the packed bundle.

    Raises:
        BundleError: If the front matter lacks a licence or names a figure that is not there, or a link leads nowhere.
    """
    import yaml

    content = parse_config(front_matter, FRONT_MATTER)
    if not isinstance(content, dict) or not isinstance(content.get("license"), str):
        raise BundleError(f"{FRONT_MATTER} must have a license, got none")
    filled = yaml.safe_dump(_fill_in(content, metadata.get("eval_metrics") or {}), sort_keys=False, width=1000)
    return f"---\n{filled}---\n\n{LINK.sub(lambda link: _from_root(link['path'], files), documentation)}"


def _fill_in(content: Any, figures: Mapping[str, Any]) -> Any:
    """Return the content with the figure in place of the name under every ``value``."""
    if isinstance(content, list):
        return [_fill_in(part, figures) for part in content]
    if not isinstance(content, dict):
        return content
    return {key: _figure(part, figures) if key == "value" else _fill_in(part, figures) for key, part in content.items()}


def _figure(name: Any, figures: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or name not in figures:
        known = ", ".join(figures) or "none there"
        raise BundleError(f"a value in {FRONT_MATTER} must be the name of one of eval_metrics ({known}), got {name}")
    return figures[name]


def _from_root(path: str, files: Container[str]) -> str:
    moved = posixpath.normpath(posixpath.join(posixpath.dirname(DOCUMENTATION), path))
    if moved not in files:
        raise BundleError(f"a link in {DOCUMENTATION} must lead to a file of the bundle, got {path}")
    return moved
