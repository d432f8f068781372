# Layers of the project, one CMake target each.
#
# qlora_layer(NAME [FOLDER folder] DEPENDS ... SOURCES ...) makes target qlora_NAME from the folder NAME
# (or the one given). Its headers are
# reached as "NAME/..." through an include root that holds this folder alone, so a layer can include exactly
# the layers it depends on: anything else is a compile error.

# -Wno-restrict: GCC 12 sees overlaps in std::string that are not there (GCC bug 105651).
# By default floating-point expressions are not contracted: rounding points are the ones written down.
add_library(qlora_options INTERFACE)
target_compile_options(qlora_options INTERFACE
  -Wall -Wextra -Werror -Wno-restrict -Wno-missing-field-initializers -ffp-contract=off -fno-math-errno
  $<$<CXX_COMPILER_ID:GNU>:-Wno-psabi>)
if(QLORA_SANITIZE)
  # Instrumented code makes GCC 12 warn of its own std::string and std::regex. Warnings are the plain
  # build's business.
  target_compile_options(qlora_options INTERFACE
    -fsanitize=${QLORA_SANITIZE} -fno-omit-frame-pointer -g1 -w)
  target_link_options(qlora_options INTERFACE -fsanitize=${QLORA_SANITIZE})
  if(QLORA_SANITIZE MATCHES "undefined")
    target_compile_options(qlora_options INTERFACE -fno-sanitize-recover=undefined)
  endif()
endif()

function(qlora_include_root NAME OUT)
  set(root "${PROJECT_BINARY_DIR}/include_roots/${NAME}")
  file(MAKE_DIRECTORY "${root}")
  file(CREATE_LINK "${PROJECT_SOURCE_DIR}/${NAME}" "${root}/${NAME}" SYMBOLIC)
  set(${OUT} "${root}" PARENT_SCOPE)
endfunction()

function(qlora_layer NAME)
  cmake_parse_arguments(ARG "" "FOLDER" "DEPENDS;SOURCES" ${ARGN})
  if(NOT ARG_FOLDER)
    set(ARG_FOLDER ${NAME})
  endif()
  qlora_include_root(${ARG_FOLDER} root)
  add_library(qlora_${NAME} STATIC ${ARG_SOURCES})
  target_include_directories(qlora_${NAME} PUBLIC "${root}")
  target_link_libraries(qlora_${NAME} PUBLIC ${ARG_DEPENDS} PRIVATE qlora_options)
endfunction()
