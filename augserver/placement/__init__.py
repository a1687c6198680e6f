"""Has engines that exist place workers on other machines: `augserver ray-workers`.

What they run is what `augserver worker` runs. No batch goes through an engine.
"""
