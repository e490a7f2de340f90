import type { Naming } from '#shared/api'
import { MusterError } from '#shared/errors'

const NAMINGS = ['csr', 'list', 'assigned'] as const satisfies readonly Naming[]

/** Where a batch takes its ids from. @throws MusterError invalid_request */
export function namingOf(text: string): Naming {
  const naming = NAMINGS.find((one) => one === text)
  if (naming !== undefined) return naming
  throw new MusterError('invalid_request', `Cannot take --naming "${text}": it is ${NAMINGS.join(', ')}`)
}
