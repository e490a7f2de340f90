import type { ImportRow } from '#shared/api'
import { MusterError } from '#shared/errors'
import { parseCsv } from './csv.ts'
import type { Entry } from './import-rows.ts'

export type ManifestEntry = Entry<ImportRow>

/**
 * Reads a manifest: CSV with a heading (`id`, perhaps `spki`, every other column an attribute), or a JSON array of
 * `{id, spki?, attributes?}`. A row that names an id or a key of an earlier row is a fault.
 * @throws MusterError invalid_request when the text as a whole is neither
 */
export function readManifest(text: string): ManifestEntry[] {
  const plain = text.replace(/^\uFEFF/, '')
  const entries = plain.trimStart().startsWith('[') ? fromJson(plain) : fromCsv(plain)
  if (entries.length === 0) throw new MusterError('invalid_request', 'Cannot import: it names no device')
  return withoutRepeats(entries)
}

function fromCsv(text: string): ManifestEntry[] {
  const [heading = [], ...records] = parseCsv(text)
  if (!heading.includes('id')) {
    throw new MusterError('invalid_request', 'Cannot read the manifest: its heading has no column "id"')
  }
  if (new Set(heading).size < heading.length || heading.includes('')) {
    throw new MusterError('invalid_request', 'Cannot read the manifest: a column has no name of its own')
  }
  return records.map((record, at): ManifestEntry => {
    const row = at + 1
    const id = record[heading.indexOf('id')] ?? ''
    if (record.length !== heading.length) {
      return { row, id, fault: `Cannot read it: ${record.length} fields under ${heading.length} columns` }
    }
    const filled = heading.map((name, column) => [name, record[column] ?? ''] as const)
    const attributes = filled.filter(([name, value]) => name !== 'id' && name !== 'spki' && value !== '')
    return { row, device: deviceOf(id, record[heading.indexOf('spki')], Object.fromEntries(attributes)) }
  })
}

function fromJson(text: string): ManifestEntry[] {
  let document: unknown
  try {
    document = JSON.parse(text)
  } catch (cause) {
    throw new MusterError('invalid_request', 'Cannot read the manifest: it is not JSON', { cause })
  }
  if (!Array.isArray(document)) throw new TypeError('it began with a bracket') // so JSON.parse gave an array
  return document.map((value: unknown, at): ManifestEntry => {
    const { id, spki, attributes = {}, ...rest } = Object(value)
    const isWell =
      typeof id === 'string' &&
      ['string', 'undefined'].includes(typeof spki) &&
      isTexts(attributes) &&
      Object.keys(rest).length === 0
    if (isWell) return { row: at + 1, device: deviceOf(id, spki, attributes) }
    return { row: at + 1, id: String(id ?? ''), fault: 'Cannot read it: it is not {id, spki?, attributes?}' }
  })
}

function isTexts(value: unknown): value is Record<string, string> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false
  return Object.values(value).every((one) => typeof one === 'string')
}

/** Fingerprints are written with colons and capitals as well; an empty one binds to no key. */
function deviceOf(
  ...[id, spki, attributes]: [string, string | undefined, Record<string, string>]
): ImportRow {
  const key = (spki ?? '').replaceAll(':', '').toLowerCase()
  return { id, ...(key === '' ? {} : { spki: key }), attributes }
}

/** The plane sees a slice at a time; a repeat may be in another one. */
function withoutRepeats(entries: readonly ManifestEntry[]): ManifestEntry[] {
  const ids = new Map<string, number>()
  const keys = new Map<string, number>()
  return entries.map((entry) => {
    if (!('device' in entry)) return entry
    const { row, device } = entry
    const earlier = ids.get(device.id) ?? (device.spki === undefined ? undefined : keys.get(device.spki))
    if (earlier !== undefined)
      return { row, id: device.id, fault: `Cannot import it: row ${earlier} has its id or key` }
    ids.set(device.id, row)
    if (device.spki !== undefined) keys.set(device.spki, row)
    return entry
  })
}
