/** How the change stream is asked for, and why it ends. */
import { MusterError } from '#shared/errors'
import { type Cursor, faultText } from '#shared/feed'

export function feedPath(cursor: Cursor | null, fault: string | null): string {
  const told = fault === null ? {} : { fault: faultText(fault) }
  const query = new URLSearchParams(cursor ? { ...cursor, position: `${cursor.position}`, ...told } : told)
  return query.size === 0 ? '/v1/feed' : `/v1/feed?${query}`
}

export function silent(): MusterError {
  return new MusterError('unreachable', 'Cannot follow the change stream: nothing came for too long')
}

export function renewed(): MusterError {
  return new MusterError('unreachable', 'Cannot follow the old change stream: the certificate was renewed')
}

export function outOfOrder(why: string): MusterError {
  return new MusterError('invalid_request', `Cannot follow the change stream: ${why}`)
}
