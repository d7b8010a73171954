"""The longest modules come first, longest first, so that at the end no worker waits long for another."""
LONGEST = ("test_drill.py", "test_study.py", "test_pages.py", "test_market1501.py", "test_wheel.py", "test_report.py", "test_networks.py",
           "test_distributed.py", "test_bad_commands.py")
PLACE = {name: place for place, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(items): items.sort(key=lambda item: PLACE.get(item.path.name, len(PLACE)))
