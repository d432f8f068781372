# Of one kernel's machine code, sm_80 to sm_90a: "COUNT LENGTH", how many instructions have one of `opcodes` (three
# hex digits each, separated by "|"), and how many instructions the shortest loop with at least `least` of those has;
# 0: there is none.
#   od -An -v -t x8 -w16 SECTION | awk -v opcodes=9f0 -v least=4 -f shortest_loop.awk
# An instruction is two words of 64 bits, the lower one first; bits 0-11 are its opcode. That of a relative branch is
# 947: bits 16-23 and, above them, 34-81 count words of four bytes from the next instruction on.
function number(hex,    i, value) {
  for (i = 1; i <= length(hex); ++i) value = value * 16 + index("0123456789abcdef", substr(hex, i, 1)) - 1
  return value
}
BEGIN { pattern = "^(" opcodes ")$" }
{
  opcode = substr($1, 14)
  if (opcode ~ pattern) ++count
  before[NR + 1] = count
  if (opcode != "947") next
  high = number(substr($2, 12)) % 2 ^ 18 * 2 ^ 30 + int(number(substr($1, 1, 8)) / 4)
  if (high >= 2 ^ 47) high -= 2 ^ 48
  target = NR + 1 + (high * 256 + number(substr($1, 11, 2))) / 4
  if (target > NR || count - before[target] < least) next
  if (shortest == 0 || NR + 1 - target < shortest) shortest = NR + 1 - target
}
END { print count + 0, shortest + 0 }
