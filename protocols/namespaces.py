"""Names that tell our elements from everybody else's."""

#: The one namespace of the wire language; the last part is its major version.
NS = "urn:spinal:1"

#: Local name of the one element that carries our JSON text (the form of XEP-0335).
ELEMENT = "x"

#: ``{namespace}name`` as xml.etree spells it.
TAG = f"{{{NS}}}{ELEMENT}"

#: Minor version: what is added without breaking anybody; told in ``hello``.
VERSION = "1.0"
