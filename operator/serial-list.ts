import type { ManufacturedEntry } from '#shared/api'
import { MusterError } from '#shared/errors'
import { parseCsv } from './csv.ts'
import type { Entry } from './import-rows.ts'

const COLUMNS = ['id', 'serialNumber', 'certificateSerial'] as const

/**
 * Reads the list of a manufacturer: CSV with a heading, or a JSON array of objects, with `serialNumber`,
 * `certificateSerial` or both, and perhaps `id`. A row that has an id or a number of an earlier row is a fault.
 * @throws MusterError invalid_request when the text as a whole is neither
 */
export function readSerialList(text: string): Entry<ManufacturedEntry>[] {
  const plain = text.replace(/^\uFEFF/, '')
  const entries = plain.trimStart().startsWith('[') ? fromJson(plain) : fromCsv(plain)
  if (entries.length === 0) throw new MusterError('invalid_request', 'Cannot import: it names no device')
  return withoutRepeats(entries)
}

function fromCsv(text: string): Entry<ManufacturedEntry>[] {
  const [heading = [], ...records] = parseCsv(text)
  const isFit = heading.every((name) => COLUMNS.some((column) => column === name))
  if (!isFit || new Set(heading).size < heading.length || heading.length === 0) {
    throw new MusterError(
      'invalid_request',
      `Cannot read the list: its columns are ${COLUMNS.join(', ')}, each once, and at least one number`,
    )
  }
  return records.map((record, at): Entry<ManufacturedEntry> => {
    const row = at + 1
    const value = (name: string) => record[heading.indexOf(name)] ?? ''
    if (record.length !== heading.length) {
      const fault = `Cannot read it: ${record.length} fields under ${heading.length} columns`
      return { row, id: value('id'), fault }
    }
    const filled = COLUMNS.filter((name) => value(name) !== '').map((name) => [name, value(name)])
    return { row, device: Object.fromEntries(filled) }
  })
}

function fromJson(text: string): Entry<ManufacturedEntry>[] {
  let document: unknown
  try {
    document = JSON.parse(text)
  } catch (cause) {
    throw new MusterError('invalid_request', 'Cannot read the list: it is not JSON', { cause })
  }
  if (!Array.isArray(document)) throw new TypeError('it began with a bracket') // so JSON.parse gave an array
  return document.map((value: unknown, at): Entry<ManufacturedEntry> => {
    const { id, serialNumber, certificateSerial, ...rest } = Object(value)
    const texts = [id, serialNumber, certificateSerial].filter((one) => one !== undefined)
    const isWell = texts.every((one) => typeof one === 'string') && Object.keys(rest).length === 0
    if (isWell && !Array.isArray(value)) return { row: at + 1, device: { ...Object(value) } }
    const fault = 'Cannot read it: it is not {id?, serialNumber?, certificateSerial?}'
    return { row: at + 1, id: String(id ?? ''), fault }
  })
}

/** The plane sees a slice at a time; a repeat may be in another one. */
function withoutRepeats(entries: readonly Entry<ManufacturedEntry>[]): Entry<ManufacturedEntry>[] {
  const seen = new Map<string, number>()
  return entries.map((entry) => {
    if (!('device' in entry)) return entry
    const { row, device } = entry
    const { serialNumber, certificateSerial, id = serialNumber } = device
    const keys = [`id ${id}`, `number ${serialNumber}`, `certificate ${certificateSerial}`].filter(
      (key) => !key.endsWith(' undefined'),
    )
    const earlier = keys.map((key) => seen.get(key)).find((found) => found !== undefined)
    if (earlier !== undefined)
      return { row, id: id ?? '', fault: `Cannot import it: row ${earlier} has its id or number` }
    for (const key of keys) seen.set(key, row)
    return entry
  })
}
