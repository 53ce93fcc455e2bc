# Warnings and sanitizers for the project's own targets. They stay private: whoever links smyrf
# chooses their own.
function(smyrf_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wconversion)
  # A parent project without a build type asks for no optimisation; the kernels are nothing without it.
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    target_compile_options(${target} PRIVATE -O3 -DNDEBUG)
  endif()
  if(SMYRF_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(SMYRF_SANITIZE)
    set(flags -fsanitize=${SMYRF_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_compile_options(${target} PRIVATE ${flags})
    target_link_options(${target} PRIVATE ${flags})
  endif()
endfunction()
