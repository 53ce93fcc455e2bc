# Two commands: `make demo` and `make test`. Each sets up what is missing first. Recipes call scripts
# by relative paths, so the tree may lie under a path with spaces.
.PHONY: help demo test wheel format bench clean

help:
	@echo 'make demo    a photograph, llama.cpp and a long document, without smyrf and with it'
	@echo 'make test    set up, then all tests, the sanitizer build, the fuzzer, format and lint'
	@echo 'make wheel   wheels and the source package in dist/, for every Python from 3.10 on that is here'
	@echo 'make format  rewrite the sources the way the format check wants them'
	@echo 'make bench   speed and memory against PyTorch'
	@echo 'make clean   remove what was built; the downloads in .venv stay'

demo:
	@tools/demo.sh

test:
	@tools/setup.sh release asan-ubsan tsan fuzz && tools/test.sh

wheel:
	@tools/wheel.sh $(PYTHON)

format:
	@tools/setup.sh release && tools/format.sh

bench:
	@tools/setup.sh release && .venv/bin/python benchmarks/attention.py
	@.venv/bin/python benchmarks/call.py
	@.venv/bin/python benchmarks/training.py
	@.venv/bin/python benchmarks/memory.py
	@.venv/bin/python benchmarks/tree.py
	@.venv/bin/python benchmarks/dial.py
	@.venv/bin/python benchmarks/dial.py --shorter

clean:
	rm -rf build dist python/smyrf/_core* python/smyrf/libggml-smyrf.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
