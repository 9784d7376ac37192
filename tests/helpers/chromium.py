"""Chromium as visitors of a page have it, driven by selenium."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needed = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
PHONE, DESKTOP = (390, 844), (1280, 800)
PATIENCE = 60  # seconds
TRANSCRIPT, ERROR = "#transcript .segment", "#message .error"


@contextlib.contextmanager
def opened(
    size: tuple[int, int] = DESKTOP, languages: str = "en-US,en", downloads: pathlib.Path | None = None
) -> Iterator[webdriver.Chrome]:
    """A browser of a size in pixels, a phone if it is narrow, set to languages; `downloads` is where files go."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    preferences = {"intl.accept_languages": languages, "download.default_directory": str(downloads)}
    options.add_experimental_option("prefs", preferences)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        width, height = size
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        yield driver
    finally:
        driver.quit()


def find(browser: webdriver.Chrome, selector: str) -> Sequence[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def wait_until(condition) -> object:
    """What a function gives as soon as that is true."""
    return WebDriverWait(None, PATIENCE).until(lambda _: condition())


def wait_for(browser: webdriver.Chrome, *selectors: str) -> Sequence[WebElement]:
    """The elements that one of the selectors finds as soon as there are some."""
    return wait_until(lambda: find(browser, ", ".join(selectors)))


def upload(browser: webdriver.Chrome, address: str, file: pathlib.Path) -> None:
    """Opens the page and gives it a file."""
    browser.get(address)
    wait_for(browser, "#recording input[type=file]")[0].send_keys(str(file))
    wait_for(browser, "#recording video")


def transcribe(browser: webdriver.Chrome) -> None:
    """Presses the button and waits for what comes of it."""
    find(browser, "#transcribe")[0].click()
    wait_for(browser, TRANSCRIPT, ERROR)


def text_of(browser: webdriver.Chrome, selector: str) -> list[str]:
    """Of elements that need not be visible."""
    return [element.get_attribute("textContent").strip() for element in find(browser, selector)]


def overhang(browser: webdriver.Chrome) -> int:
    """Pixels by which the page is wider than the screen."""
    return browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
