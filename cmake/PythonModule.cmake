# Python's headers and pybind11, for the module _C.
find_package(Python COMPONENTS Interpreter Development.Module QUIET)
if(NOT Python_Development.Module_FOUND)
  message(FATAL_ERROR "mobilenet_ext: the headers of ${Python_EXECUTABLE} are missing; "
                      "install them (python3-dev on Debian and Ubuntu, python3-devel on Fedora).")
endif()
find_package(pybind11 CONFIG QUIET)
if(NOT pybind11_FOUND)
  message(FATAL_ERROR "mobilenet_ext: pybind11 was not found; run `pip install pybind11` and pass -Dpybind11_DIR=`pybind11-config --cmakedir`.")
endif()
