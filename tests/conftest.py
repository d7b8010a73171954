"""The longest modules come first, so that at the end no worker waits for another."""
LONGEST = "test_drill.py", "test_study.py"


def pytest_collection_modifyitems(items): items.sort(key=lambda item: item.path.name not in LONGEST)
