import t from 'tap'
import { isRefusalErrorCode, REFUSALS, refusalCode } from '#shared/refusals'

t.test('an error code names its refusal', async (t) => {
  t.equal(refusalCode('token_spent'), 'R-TOKEN-SPENT')
  t.ok(REFUSALS[refusalCode('csr_pop')])
  t.equal(isRefusalErrorCode('not_found'), false)
})
