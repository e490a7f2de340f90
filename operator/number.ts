import { MusterError } from '#shared/errors'

/** A whole number of at least one, as an option's value. @throws MusterError invalid_request */
export function positiveInteger(option: string, text: string): number {
  const value = Number(text)
  if (/^\d+$/.test(text) && Number.isSafeInteger(value) && value > 0) return value
  throw new MusterError(
    'invalid_request',
    `Cannot take ${option} "${text}": it is a whole number, at least 1`,
  )
}
