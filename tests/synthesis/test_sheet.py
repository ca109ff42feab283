import io

from PIL import Image

from kdcli.synthesis.sheet import contact_sheet, gallery


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


def test_pictures_without_sources_stand_side_by_side():
    colours = ["red", "lime", "blue"]
    sheet = Image.open(io.BytesIO(gallery([Image.new("RGB", (20, 20), c) for c in colours], columns=2)))
    assert sheet.size == (2 * 168 + 8, 2 * 168 + 8)
    assert [sheet.getpixel((8 + 168 * x + 80, 8 + 168 * y + 80)) for x, y in ((0, 0), (1, 0), (0, 1))] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
    ]
    assert sheet.getpixel((8 + 168 + 80, 8 + 168 + 80)) == (255, 255, 255)
