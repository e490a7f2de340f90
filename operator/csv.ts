import { MusterError } from '#shared/errors'

const BARE = /[^",\r\n]*/y
const QUOTED = /"([^"]*(?:""[^"]*)*)"/y
const LINE_END = /\r?\n/y

/**
 * Records of a CSV text, strictly as in RFC 4180: fields between commas, quoted whole or not at all, `""` for a quote
 * within quotes, lines that end with CRLF or LF. Nothing is trimmed. Empty lines are left out.
 * @throws MusterError invalid_request, which names the line
 */
export function parseCsv(text: string): string[][] {
  const records: string[][] = []
  let record: string[] = []
  let at = 0
  const take = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = at
    const found = pattern.exec(text)
    if (found !== null) at = pattern.lastIndex
    return found
  }
  const field = () => {
    const quoted = take(QUOTED)
    record.push(quoted === null ? (take(BARE)?.[0] ?? '') : (quoted[1] ?? '').replaceAll('""', '"'))
  }
  while (at < text.length) {
    field()
    if (text[at] === ',') {
      at++
      if (at < text.length) continue
      record.push('') // a comma at the very end has a field after it
    } else if (at < text.length && take(LINE_END) === null) throw misread(text, at)
    if (record.length > 1 || record[0] !== '') records.push(record)
    record = []
  }
  return records
}

function misread(text: string, at: number): MusterError {
  const line = text.slice(0, at).split('\n').length
  return new MusterError(
    'invalid_request',
    `Cannot read line ${line}: a quote is not closed, or stands within a field (RFC 4180 section 2)`,
  )
}
