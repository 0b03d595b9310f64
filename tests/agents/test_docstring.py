from spinal.agents import docstring


def test_the_text_before_the_sections_is_the_summary() -> None:
    docs = docstring.read(
        """Scale a photo.

        To the given width
        in pixels.

        Args:
            photo: What to scale,
                a JPEG.
            width (int): In pixels.

        Returns:
            The scaled one.
        """
    )

    assert docs.summary == "Scale a photo.\nTo the given width in pixels."
    assert docs.args == {"photo": "What to scale, a JPEG.", "width": "In pixels."}


def test_no_docstring_is_no_help() -> None:
    assert docstring.read(None) == docstring.Docs()


def test_a_colon_inside_a_description_does_not_begin_an_argument() -> None:
    docs = docstring.read(
        "Do it.\n\nArgs:\n    a: one of\n        b: not an argument\n    c: yes\n"
    )

    assert docs.args == {"a": "one of b: not an argument", "c": "yes"}
