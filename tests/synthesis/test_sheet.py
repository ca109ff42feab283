import io

from PIL import Image

from kdcli.synthesis.sheet import contact_sheet


def test_a_row_has_its_sources_and_the_result_apart():
    colours = ["red", "lime", "blue"]
    red, lime, blue = (Image.new("RGB", (20 + 10 * i, 20), c) for i, c in enumerate(colours))
    sheet = Image.open(io.BytesIO(contact_sheet([([red, lime], blue), ([lime], blue)])))
    middle = [sheet.getpixel((8 + 168 * i + 80, 88)) for i in range(2)]
    assert middle == [(255, 0, 0), (0, 255, 0)]
    assert sheet.getpixel((8 + 336 + 16 + 80, 88)) == (0, 0, 255)
    assert sheet.getpixel((8 + 336 + 8, 88)) == (255, 255, 255)  # the wider gap
    assert sheet.getpixel((8 + 168 + 80, 88 + 168)) == (255, 255, 255)  # the second row has one source
    assert sheet.getpixel((8 + 336 + 16 + 80, 88 + 168)) == (0, 0, 255)
    assert sheet.size == (3 * 168 + 24, 2 * 168 + 8)
