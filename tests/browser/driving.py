"""What the tests do in a browser, in a few words of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Page:
    """A browser with a few words of our own."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str | Path, fragment: str = "") -> None:
        url = address.as_uri() if isinstance(address, Path) else address
        self.driver.get("about:blank")  # a change of fragment alone would not load anything
        self.driver.get(f"{url}#{fragment}")

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait_js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_async_script(script, *arguments)

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).textContent", selector))

    def choose(self, name: str, text: str) -> None:
        """Take the option with this text in the list of this name, as a person does."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.select import Select

        found = self.driver.find_element(By.CSS_SELECTOR, f'select[data-name="{name}"]')
        Select(found).select_by_visible_text(text)

    def press(self, selector: str) -> None:
        from selenium.webdriver.common.by import By

        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def click_at(self, x: float, y: float) -> None:
        """Click a point of the canvas, counted from its upper left corner."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.by import By

        canvas = self.driver.find_element(By.CSS_SELECTOR, ".stage canvas")
        size = canvas.size
        shift = (round(x - size["width"] / 2), round(y - size["height"] / 2))
        ActionChains(self.driver).move_to_element_with_offset(canvas, *shift).click().perform()

    def type(self, text: str) -> None:
        from selenium.webdriver.common.by import By

        field = self.driver.find_element(By.CSS_SELECTOR, 'input[type="search"]')
        field.clear()
        field.send_keys(text)

    def errors(self) -> list[str]:
        """What the console said, and everything that was fetched from elsewhere."""
        return [entry["message"] for entry in self.driver.get_log("browser")]
