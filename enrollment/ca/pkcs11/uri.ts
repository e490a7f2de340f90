import { isAbsolute } from 'node:path'
import { MusterError } from '#shared/errors'

/** A key in a token, and how the token is reached: a PKCS#11 URI (RFC 7512). */
export interface KeyUri {
  /** Path of the module, absolute. */
  readonly modulePath: string
  /** Of the token; at least one of label and serial. */
  readonly token: string | null
  readonly serial: string | null
  /** Of the key; at least one of label and id. */
  readonly object: string | null
  readonly id: Buffer | null
  /** Path of the file with the PIN, absolute; null: it comes from the environment or systemd. */
  readonly pinFile: string | null
}

/** What a key file begins with whose key lies in a token. */
export const SCHEME = 'pkcs11:'
const PATH_ATTRIBUTES = ['token', 'serial', 'object', 'id', 'type']
const QUERY_ATTRIBUTES = ['module-path', 'pin-source']
const MAX_LENGTH = 2_048

/**
 * Reads the attributes that say where the key is, and refuses those that would be left out of account. A PIN in the
 * URI (`pin-value`) is refused: the URI is shown, and in the backup.
 * @throws MusterError config_invalid; the message has names of attributes and never a value
 */
export function parseKeyUri(text: string): KeyUri {
  if (text.length > MAX_LENGTH || !text.startsWith(SCHEME)) throw invalid('it does not begin with pkcs11:')
  const [path = '', query, ...more] = text.slice(SCHEME.length).split('?')
  if (more.length > 0) throw invalid('it has more than one "?"')
  const of = attributes(path, { separator: ';', known: PATH_ATTRIBUTES })
  const how = attributes(query ?? '', { separator: '&', known: QUERY_ATTRIBUTES })
  const type = textOf(of, 'type')
  if (type !== null && type !== 'private') throw invalid('type is not private')
  const uri: KeyUri = {
    modulePath: textOf(how, 'module-path') ?? '',
    token: textOf(of, 'token'),
    serial: textOf(of, 'serial'),
    object: textOf(of, 'object'),
    id: of.get('id') ?? null,
    pinFile: pinFile(textOf(how, 'pin-source')),
  }
  if (!isAbsolute(uri.modulePath)) throw invalid('module-path does not name a file by its absolute path')
  if (!uri.token && !uri.serial) throw invalid('it names no token')
  if (!uri.object && !uri.id?.length) throw invalid('it names no key: neither object nor id')
  return uri
}

/** Writes it, so that reading it gives the same. */
export function formatKeyUri(uri: KeyUri): string {
  const path = [
    ['token', uri.token],
    ['serial', uri.serial],
    ['object', uri.object],
  ].flatMap(([name, value]) => (value ? [`${name}=${encodeURIComponent(value)}`] : []))
  if (uri.id) path.push(`id=${uri.id.toString('hex').replaceAll(/../g, '%$&')}`)
  const query = [`module-path=${encodePath(uri.modulePath)}`]
  if (uri.pinFile) query.push(`pin-source=file:${encodePath(uri.pinFile)}`)
  return `${SCHEME}${[...path, 'type=private'].join(';')}?${query.join('&')}`
}

function encodePath(path: string): string {
  return path.split('/').map(encodeURIComponent).join('/')
}

function attributes(
  text: string,
  { separator, known }: { separator: string; known: readonly string[] },
): Map<string, Buffer> {
  const found = new Map<string, Buffer>()
  for (const part of text === '' ? [] : text.split(separator)) {
    const [, name = '', value = ''] = /^([a-z-]+)=(.*)$/.exec(part) ?? []
    if (name === 'pin-value') throw invalid('the PIN is in it; name a file instead: ?pin-source=file:/path')
    if (!known.includes(name)) throw invalid(`it may have ${known.join(', ')} here, and has something else`)
    if (found.has(name)) throw invalid(`${name} is there twice`)
    found.set(name, decode(name, value))
  }
  return found
}

/** RFC 7512 section 2.3: letters, digits and some signs, and everything else as `%` and two hex digits. */
const VALUE = /^(?:[A-Za-z0-9\-._~:[\]@!$'()*+,=/&|]|%[0-9A-Fa-f]{2})*$/

function decode(name: string, value: string): Buffer {
  if (!VALUE.test(value)) throw invalid(`${name} has a sign that must be written as % and two hex digits`)
  const octets = value.replaceAll(/%([0-9A-Fa-f]{2})/g, (_, hex) => String.fromCharCode(parseInt(hex, 16)))
  return Buffer.from(octets, 'latin1')
}

function textOf(found: ReadonlyMap<string, Buffer>, name: string): string | null {
  const octets = found.get(name)
  if (octets === undefined) return null
  const text = octets.toString('utf8')
  if (!Buffer.from(text, 'utf8').equals(octets) || text.includes('\0')) throw invalid(`${name} is not text`)
  return text
}

function pinFile(source: string | null): string | null {
  if (source === null) return null
  const path = source.startsWith('file:') ? source.slice('file:'.length).replace(/^\/\/(?=\/)/, '') : source
  if (!isAbsolute(path)) throw invalid('pin-source does not name a file by its absolute path')
  return path
}

function invalid(why: string): MusterError {
  return new MusterError('config_invalid', `Cannot use a PKCS#11 URI: ${why}`)
}
