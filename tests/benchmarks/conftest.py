"""A marker of this folder: tests that need a browser."""


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: opens the page in headless Chromium; run with `-m browser`")
