"""Every page of a study of ours that a test of this folder makes has a picture."""

import pytest

from steering.runs import driver
from steering.studies import known_studies


@pytest.fixture(scope="session", autouse=True)
def every_page_has_a_picture():
    """On the small runs that are made anyway. Where all runs have lost there is nothing to draw."""
    write, ours = driver.write_study, known_studies()

    def checked(folder, file, report):
        write(folder, file, report)
        drawn = [path for path in folder.glob(f"{report.name}*.png") if path.stat().st_size]
        lost = "Diverged, and so lost" in report.markdown()
        assert drawn or lost or file.study not in ours, f"{file.study}: a page without a picture"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "write_study", checked)
        yield
