import { readFileSync } from 'node:fs'
import { MusterError } from '#shared/errors'

/**
 * What a file says, whose form the plane checks.
 * @throws MusterError invalid_request when it cannot be read, or is not one JSON object
 */
export function readJsonFile(path: string): object {
  const text = readTextFile(path)
  try {
    const document: unknown = JSON.parse(text)
    if (typeof document === 'object' && document !== null && !Array.isArray(document)) return document
  } catch (cause) {
    throw new MusterError('invalid_request', `Cannot read "${path}": it is not JSON`, { cause })
  }
  throw new MusterError('invalid_request', `Cannot read "${path}": it is not a JSON object`)
}

/** Without its byte order mark, which editors on Windows write. @throws MusterError invalid_request */
export function readTextFile(path: string): string {
  const octets = readOctets(path)
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(octets)
  } catch (cause) {
    throw new MusterError('invalid_request', `Cannot read the file "${path}": it is not UTF-8`, { cause })
  }
}

function readOctets(path: string): Uint8Array {
  try {
    return readFileSync(path)
  } catch (cause) {
    const { code = 'error' } = cause as NodeJS.ErrnoException // readFileSync throws nothing else
    throw new MusterError('invalid_request', `Cannot read the file "${path}": ${code}`, { cause })
  }
}
