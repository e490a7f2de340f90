import type { SourceFile } from './source-tree.ts'

export interface FunctionFact {
  readonly path: string
  readonly name: string
  /** From its first line to its closing brace, both included. */
  readonly lines: number
}

/** `function name(`, a method, or `const name = (...) => {`; not the control statements that look like one. */
const OPENING =
  /^(\s*)(?:export\s+)?(?:default\s+)?(?:(?:static|private|async)\s+)*(?:function\*?\s+(\w+)|(?:const|let)\s+(\w+)[^=]*=\s*(?:async\s*)?(?:\([^)]*\)|\w+)[^=]*=>\s*\{$|(#?\w+)\s*(?:<[^>]*>)?\()/
const CONTROL = new Set(['if', 'for', 'while', 'switch', 'catch', 'return', 'await', 'super', 'function'])

/**
 * The functions of a file and their lengths, read from the layout that the formatter gives them: a body ends at the
 * first line that closes with the indentation of its opening.
 */
export function functionsOf(file: SourceFile): FunctionFact[] {
  const lines = file.text.split('\n')
  return lines.flatMap((line, index) => {
    const [, indent = '', ...names] = OPENING.exec(line) ?? []
    const name = names.find((one) => one !== undefined)
    if (name === undefined || CONTROL.has(name)) return []
    const opening = lines.findIndex((one, at) => at >= index && (/\{$/.test(one) || at > index + 12))
    const isBody = opening >= 0 && lines.slice(index + 1, opening + 1).every((one) => !isOutside(one, indent))
    const closing = isBody
      ? lines.findIndex((one, at) => at > opening && new RegExp(`^${indent}\\}`).test(one))
      : -1
    return closing < 0 || lines[opening]?.endsWith('({')
      ? []
      : [{ path: file.path, name, lines: closing - index + 1 }]
  })
}

/** True for a line that is no longer part of a signature that began with this indentation. */
function isOutside(line: string, indent: string): boolean {
  return line.startsWith(indent) && /^[\w#]/.test(line.slice(indent.length))
}

/** Lines of a file; its last line ends with a newline. */
export function lineCount(file: SourceFile): number {
  return file.text.split('\n').length - (file.text.endsWith('\n') ? 1 : 0)
}

export function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0
}
