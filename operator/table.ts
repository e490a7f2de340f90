import Table from 'cli-table3'
import { visible } from './visible.ts'

/** Lines without borders: it reads well, and `awk` reads it too. */
const PLAIN = {
  top: '',
  'top-mid': '',
  'top-left': '',
  'top-right': '',
  bottom: '',
  'bottom-mid': '',
  'bottom-left': '',
  'bottom-right': '',
  left: '',
  'left-mid': '',
  mid: '',
  'mid-mid': '',
  right: '',
  'right-mid': '',
  middle: '  ',
}

export type Cell = string | number

/** A table with a heading, columns as wide as their content; the heading alone when there are no rows. */
export function table(head: readonly string[], rows: readonly (readonly Cell[])[]): string {
  return lines([head, ...rows])
}

/** Names on the left, values on the right. */
export function pairs(rows: readonly (readonly [string, Cell])[]): string {
  return lines(rows)
}

function lines(rows: readonly (readonly Cell[])[]): string {
  const style = { head: [], border: [], 'padding-left': 0, 'padding-right': 0 }
  const table = new Table({ chars: PLAIN, style })
  table.push(...rows.map((row) => row.map((cell) => visible(String(cell)))))
  return table
    .toString()
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n')
}
