# Installs smyrf into a temporary prefix, copies examples/cpp out of the tree, builds it against
# the installed package alone, and runs it.
execute_process(COMMAND mktemp -d OUTPUT_VARIABLE work OUTPUT_STRIP_TRAILING_WHITESPACE
  COMMAND_ERROR_IS_FATAL ANY)

function(run)
  execute_process(COMMAND ${ARGV} WORKING_DIRECTORY ${work} RESULT_VARIABLE result
    COMMAND_ECHO STDOUT)
  if(NOT result EQUAL 0)
    file(REMOVE_RECURSE ${work})
    message(FATAL_ERROR "failed (${result}): ${ARGV}")
  endif()
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${work}/prefix)
file(COPY ${EXAMPLE_DIR}/ DESTINATION ${work}/example)
run(${CMAKE_COMMAND} -S example -B build -G ${GENERATOR}
  -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_PREFIX_PATH=${work}/prefix)
file(STRINGS ${work}/build/CMakeCache.txt found REGEX "^smyrf_DIR:PATH=${work}/prefix/")
run(${CMAKE_COMMAND} --build build)
run(${work}/build/example)
file(REMOVE_RECURSE ${work})
if(NOT found)
  message(FATAL_ERROR "the example was built against another smyrf than the one just installed")
endif()
