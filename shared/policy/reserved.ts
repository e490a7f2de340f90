import { isForServices } from '../presence.ts'

/**
 * Why nobody of this kind is granted the filter, whatever a policy says; null when the policies decide. A broker and
 * whoever explains its decisions ask here.
 */
export function reservedFilter(filter: string, kind: 'device' | 'service'): string | null {
  if (filter.startsWith('$')) return 'this broker has no shared subscriptions'
  if (kind === 'device' && isForServices(filter)) return 'what the broker tells there is for services only'
  return null
}
