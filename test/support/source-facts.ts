import type { SourceFile } from './source-tree.ts'

export interface FunctionFact {
  readonly path: string
  readonly name: string
  /** From its first line to its closing brace, without the functions that it contains. */
  readonly lines: number
}

interface Span {
  readonly name: string
  readonly from: number
  readonly to: number
}

/** `function name(`, `const name = … => {`, `name: … => {`, and a method: at the beginning of a line. */
const DECLARED = /^\s*(?:export\s+)?(?:default\s+)?(?:async\s+)?function\*?\s+(\w+)/
const ASSIGNED = /^\s*(?:export\s+)?(?:const\s+)?(#?\w+)(?:\s*=|:)\s*(?:async\s*)?(?:\(|\w+\s*=>)/
const METHOD = /^\s+(?:(?:static|async|get|set|override)\s+)*\*?(#?\w+)(?:<[^>]*>)?\(/
const CONTROL = new Set(['if', 'for', 'while', 'switch', 'catch', 'return', 'await', 'super', 'function'])

/** Lines that a signature may take. */
const LONGEST_SIGNATURE = 16

/**
 * The functions of a file and their lengths, read from the layout that the formatter gives them: a body ends at the
 * first line that closes with the indentation of its opening.
 */
export function functionsOf(file: SourceFile): FunctionFact[] {
  const lines = file.text.split('\n')
  const spans = lines.flatMap((line, from) => spanAt(lines, { line, from }) ?? [])
  return spans.map((span) => {
    const nested = spans.filter((other) => other.from > span.from && other.to < span.to)
    const outermost = nested.filter(
      (one) => !nested.some((other) => other.from < one.from && other.to > one.to),
    )
    const inside = outermost.reduce((sum, { from, to }) => sum + to - from + 1, 0)
    return { path: file.path, name: span.name, lines: span.to - span.from + 1 - inside }
  })
}

function spanAt(lines: readonly string[], { line, from }: { line: string; from: number }): Span | null {
  const indent = /^\s*/.exec(line)?.[0] ?? ''
  const isMethod = !DECLARED.test(line) && !ASSIGNED.test(line)
  const name = (DECLARED.exec(line) ?? ASSIGNED.exec(line) ?? METHOD.exec(line))?.[1]
  if (name === undefined || CONTROL.has(name)) return null
  const opening = lines.findIndex(
    (one, at) => at >= from && (at === from ? one.endsWith('{') : one.startsWith(`${indent})`)),
  )
  const last = lines[opening] ?? ''
  const opens = isMethod ? /\)(?::[^=]+)?\s\{$/ : /(?:\)(?::.+)?|=>|\})\s\{$/
  if (opening < 0 || opening - from > LONGEST_SIGNATURE || !opens.test(last)) return null
  if (!isMethod && ASSIGNED.test(line) && !DECLARED.test(line) && !last.endsWith('=> {')) return null
  const to = lines.findIndex((one, at) => at > opening && one.startsWith(`${indent}}`))
  return to < 0 ? null : { name, from, to }
}

/** Lines of a file; its last line ends with a newline. */
export function lineCount(file: SourceFile): number {
  return file.text.split('\n').length - (file.text.endsWith('\n') ? 1 : 0)
}

export function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0
}
